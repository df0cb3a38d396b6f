"""The demo's data: four tasks of a content platform and a shop's support desk, English and Chinese."""
