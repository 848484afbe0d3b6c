"""The peers, one a file: written here from their papers, in the form in which their authors run them."""
