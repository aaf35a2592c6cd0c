"""The supervisor's web server: metrics, the page, and the requests of `onelane status` and `reload`."""
