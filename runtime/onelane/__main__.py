"""`python -m onelane` is `onelane`."""

from onelane.cli.entry import main

main()
