"""The commands of `triptych`, grouped by what they are about; `request.py` has what they share."""
