"""Every model under every optimizer, against the floor: made, checked, measured and shown."""
