"""What Lighterman is measured against."""
