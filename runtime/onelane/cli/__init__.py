"""The command `onelane`: up, serve, status, top, reload, proto, new, ls, describe, call. Imports: all. Main function:
`main.main`."""
