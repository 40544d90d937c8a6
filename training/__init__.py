"""Makes models: reads data, fits, exports, quantizes, evaluates, and hands a sealed bundle to the registry."""
