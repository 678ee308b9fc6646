"""One HTML file of one run or several, from their own records: no network, no account."""
