"""Volumes and photographs through trained networks and chains."""
