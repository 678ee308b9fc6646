"""What a model knows: probes of frozen upstreams on real speech."""
