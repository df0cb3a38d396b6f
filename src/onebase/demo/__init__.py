"""The demo's tasks: a content platform's four and a shop's support desk, English and Chinese."""
