"""`python -m onelane` is `onelane`."""

from onelane.cli import main

main()
