"""The command `onelane`: up, serve, status, top, reload, proto. Imports: all. Main function: `main.main`."""
