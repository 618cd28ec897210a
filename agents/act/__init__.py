"""The world model as a policy: its action stream alone, with foresight, or the best of N dreams."""
