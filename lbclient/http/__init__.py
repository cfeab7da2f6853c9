"""HTTP over the balancer. The only folder with httpx."""
