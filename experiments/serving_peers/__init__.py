"""The gateway beside other serving tools."""
