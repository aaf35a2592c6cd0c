"""The supervisor's web server: metrics, the page, the requests of `onelane status` and `reload`."""
