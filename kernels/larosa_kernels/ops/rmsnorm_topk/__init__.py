"""The op `norm_select`: reference, kernel and api."""
