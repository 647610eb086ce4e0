"""What each host's config gets wrong about a video reward, one file per host."""
