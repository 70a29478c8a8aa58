"""Two hosts on one machine: network namespaces with addresses of their own. As root alone; else skipped."""
