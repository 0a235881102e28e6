"""Regions over their life: create, bind, prefault, release."""
