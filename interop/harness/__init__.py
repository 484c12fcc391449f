"""Real servers, real workers and real clients for the tests in this folder."""
