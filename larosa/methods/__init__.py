"""The methods: one file each, from settings to levels and a plan; `base` has their protocol, `registry` their names."""
