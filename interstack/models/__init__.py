"""Teacher and student: everything with weights, free of Lightning, so that it fits any trainer."""
