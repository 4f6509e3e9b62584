"""Is the posterior true, and is the observation one that it knows?"""
