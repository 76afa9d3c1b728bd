"""The reproduction itself: a profile's runs, the rows of Table 1, the claims."""
