"""What people see of a build."""
