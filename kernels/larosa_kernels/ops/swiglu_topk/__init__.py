"""The op `swiglu_select`: reference, kernel and api."""
