"""The governed MLflow server: ``mlflow server --app-name triptych``.

It alone holds the promotion key. The alias ``champion`` moves only by an entry in the ledger, which the server writes
first; everything else that would move what ``models:/NAME@champion`` gives is refused with a reason.
"""
