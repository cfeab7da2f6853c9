"""HTTP over the balancer. Only this package imports httpx."""
