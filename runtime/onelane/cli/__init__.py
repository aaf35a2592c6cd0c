"""The command `onelane`: up, serve, status, top, reload, proto, new. Imports: all. Main function: `main.main`."""
