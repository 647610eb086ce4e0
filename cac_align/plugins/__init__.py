"""Adapters of our reward to host trainers, one file per host, and the doctor that checks their configs."""
