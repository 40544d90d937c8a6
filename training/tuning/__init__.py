"""`rankyard tune`: a search for a better configuration, from its YAML to the model that is trained by the best one."""
