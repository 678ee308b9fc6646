"""The method: operators, plans and schedules are pure; only the callback knows Lightning."""
