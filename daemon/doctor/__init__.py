"""`stepd doctor`: whether this machine is one on which logging works well, and the lines that mend what is not.

What may live here: checks, a module for each kind of them, and what runs them. A check is a function of a `Machine` (what is
looked at, so that a test can show it another one) that gives `Finding`s; it prints nothing and changes nothing. It may be slow,
hang or fail: `running.py` has them run in a child with a time limit each.

What is measured is measured in a store of the doctor's own, beside the one that is asked about, and gone afterwards.
"""
