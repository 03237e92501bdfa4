"""The methods: one file each, from settings to a Plan."""
