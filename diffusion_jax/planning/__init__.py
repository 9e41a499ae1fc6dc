"""From a page to a program for chips that are not there: layouts, and compilation."""
