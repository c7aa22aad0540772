"""Where on a map a SAR image lies, and how sure that is: what code_Match, tools/locate.py and hubconf.py ask."""
