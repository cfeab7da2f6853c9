"""Discovery by DNS. The only folder with dnspython, registration aside.

`addresses.py` makes instances of address records, `srv.py` of SRV records. `core/pool.py` makes an
endpoint of each instance.
"""
