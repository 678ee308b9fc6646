"""Teacher and student: everything with weights, free of Lightning, for any trainer."""
