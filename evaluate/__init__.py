"""Tables and plots made from the records of a checkout; not part of the wheel."""
