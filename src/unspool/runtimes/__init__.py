"""Models behind four methods: forward, fork, truncate, release."""
