"""Maps as people have them, and where on one a SAR image lies: what tools/locate.py and hubconf.py ask."""
