"""How the cost of a step grows: with leaves, size, pages and devices.

    python -m benchmarks.growth

What should grow as the work does, and what should not grow at all, is seen by the exponents that
the record's page shows.
"""
