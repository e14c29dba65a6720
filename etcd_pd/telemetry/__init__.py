"""Counters and histograms in; a page that Prometheus scrapes, and the limits of every HTTP listener, out."""
