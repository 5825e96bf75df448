"""Names, generations, leases, targets and instances: what runs a call."""
