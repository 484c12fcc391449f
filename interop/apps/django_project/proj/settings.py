import os

FOLDER = os.environ["INTEROP_FOLDER"]
SECRET_KEY = "for tests only"
INSTALLED_APPS = ["shop.apps.ShopConfig"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"{FOLDER}/db.sqlite3",
        "CONN_MAX_AGE": 600,
        "OPTIONS": {"timeout": 30},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "Pacific/Auckland"

CELERY_BROKER_URL = os.environ["INTEROP_BROKER"]
CELERY_RESULT_BACKEND = os.environ["INTEROP_BACKEND"]
CELERY_TASK_DEFAULT_QUEUE = "shop"
CELERY_TASK_TIME_LIMIT = 120
CELERY_TIMEZONE = TIME_ZONE

locals().update(eval(os.environ.get("INTEROP_SETTINGS", "{}")))
