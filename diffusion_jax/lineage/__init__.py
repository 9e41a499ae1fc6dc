"""Every system on one data set: trained alike, compared, and shown on a page."""
