"""Nothing new: record why a run trains and judges nothing."""
