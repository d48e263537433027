"""What stands in the kernel: rules, routes and the watch over them."""
