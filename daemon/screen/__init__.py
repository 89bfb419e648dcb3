"""The live screen of `stepd watch`: what is shown, as lines of text, and the program around it.

`model` and `page` read in a thread of their own, `view` knows what is open and what keys do, `table` and `page` make lines; all of them are
without textual, so that one frame can be printed, and tested, as text. `app` gives them a terminal.
"""
