"""Where a task goes: its instruction, its group, and what that group becomes, measured."""
